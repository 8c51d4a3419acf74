"""The multi-task network: towers, history encoder, experts, losses."""
