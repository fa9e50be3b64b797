"""Reference worlds and models that the project measures itself against."""
