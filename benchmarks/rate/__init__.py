"""`make bench-rate`: accuracy against bytes, ours and every rival on the same pictures."""
