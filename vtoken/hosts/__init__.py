"""Other programs that run models, and what vtoken puts into them: one folder a program."""
