"""Workers as the router sees them: membership, models, figures, health, learnt rates, the ring. Pure."""
