"""Selection loops as published, for comparison."""
