"""What measures and draws. Nothing imports this package."""
