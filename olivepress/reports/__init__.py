"""Reports for people and programs: the document of a version, its page, and comparisons of several. Pure."""
