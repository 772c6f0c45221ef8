"""ThinkJEPA: a V-JEPA 2 predictor guided by a vision-language model."""
