"""From raw tables to the dataset artifact."""
