"""What a registration gives: images, labels and points on the fixed image's grid, and the files of them."""
