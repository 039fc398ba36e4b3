"""For each kind of event, its remedy applied to the case that provoked it."""
