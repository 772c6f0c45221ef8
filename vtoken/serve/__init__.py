"""`vtoken serve`: video questions over HTTP in OpenAI's form. No model logic lives here: it calls ``vtoken.ask``."""
