"""Good artifacts and damaged ones, held against the gates of the real validate step (`make proof`)."""
