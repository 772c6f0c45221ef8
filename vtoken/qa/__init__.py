"""A video and questions in, answers out."""
