"""Who is served next, and how much each may send and hold."""
