"""The Gradio page of ``vtoken demo``: video questions at high rates, what was kept and what it cost.

No model logic lives here: the page calls ``vtoken.load``, ``vtoken.wrap``, ``vtoken.ask`` and ``vtoken.open_video``.
"""
