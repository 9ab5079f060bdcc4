"""`make gpu`: checks and measures this trainer on one GPU, and on two where there are two."""
