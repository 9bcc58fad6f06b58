"""Registration of whole pairs, ours against other programs: ``make bench-register DATA=FOLDER``."""
