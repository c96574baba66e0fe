"""Contents on their way, verified: results here, images there."""
