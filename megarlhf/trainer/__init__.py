"""What a run does: the RL loop (`rl`) and the offline loop (`offline`), and their parts."""
