"""Live video: cameras, addresses, screens, files at their own pace and iterators, read in a thread of their own.

``live`` has the object that is iterated, ``opening`` finds out what a source is, ``clock`` gives times, ``camera``,
``address``, ``screen`` and ``given`` read one kind each.
"""

from vtoken.video.live.items import Counters, Gap, Moment
from vtoken.video.live.live import Live
from vtoken.video.live.opening import open_live

__all__ = ["Counters", "Gap", "Live", "Moment", "open_live"]
