"""Ray: placement, worker groups, engine actors."""
