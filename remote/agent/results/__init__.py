"""What comes of a run, as it is followed and as it is fetched; and what may be removed then."""
