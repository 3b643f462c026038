"""The RL loop on one page, the offline loop on one page, and what they share."""
