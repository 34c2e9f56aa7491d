"""Tasks that come with the library."""
