"""What flows through vtoken: frames, the map of a gate, tokens, budgets, reports."""
