"""Where the model comes from. A plane watches one source of truth and reports changes of model values."""
