"""What comes of a sweep beside its images: the grid, the page, the tables."""
