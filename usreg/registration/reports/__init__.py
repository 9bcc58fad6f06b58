"""How good a registration is, and how it went: measures, report.json, report.html, and bars while it runs."""
