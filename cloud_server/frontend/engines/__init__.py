"""The front end's side of the engines: keeps them running and sends them jobs."""
