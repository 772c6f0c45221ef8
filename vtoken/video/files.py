"""What may be opened: the one place through which every file and every address goes.

A file given by a user is opened over the file protocol alone and only in formats that hold their own data. Playlists,
concat scripts, session descriptions and the like name other files or addresses, so they are refused. An address is
opened only where the caller asks for it (``network=True``), and then it cannot reach a file of this machine.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vtoken.errors import InputError, MissingFileError, VideoError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

VIDEO = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,kux,asf,asf_o,ogg,nut,gif,apng,mxf,"
    "gxf,dv,rm,swf,wtv,yuv4mpegpipe,ivf,obu,av1,h264,hevc,vvc,evc,m4v,h263,h261,vc1,vc1test,cavsvideo,avs2,avs3,dirac,"
    "dnxhd,mjpeg,mjpeg_2000,mpjpeg,smjpeg,nsv,nuv,roq,bink,smk,flic,film_cpk,pva,ivr,lmlm4,pmp,thp,ty,dhav,ser,cine"
)
SOUND = "mp3,flac,wav,w64,aac,ac3,eac3,aiff,caf,au,amr,ape,wv,tta,dts,mpc,mpc8,truehd,tak,dsf,oma"  # for their message
LIVE = "hls,dash,rtsp,sdp,rtp"  # formats of addresses, never of files
PROTOCOLS = "http,https,httpproxy,tcp,tls,udp,rtp,srtp,rtsp,rtmp,rtmps,srt,crypto"
SCHEMES = ("http", "https", "rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "srt")
TIMEOUT = (10.0, 20.0)  # seconds to open an address, and to wait for more of it

CLAIMS = {  # what a file's name says, for files too short or too odd to be known by their content
    "mpegts": (".ts", ".m2ts", ".mts"),
    "mpeg": (".mpg", ".mpeg", ".vob"),
    "mp4": (".mp4", ".m4v", ".mov", ".3gp"),
    "matroska": (".mkv", ".webm"),
    "avi": (".avi",),
    "flv": (".flv",),
    "h264": (".h264", ".264", ".avc"),
    "hevc": (".h265", ".265", ".hevc"),
    "gif": (".gif",),
}
LISTS = (".m3u8", ".m3u", ".mpd", ".sdp", ".ffconcat", ".pls", ".asx", ".xspf", ".ism", ".smil")
MARKS = (b"#extm3u", b"ffconcat", b"<mpd", b"[playlist]", b"<asx", b"v=0\r\no=", b"v=0\no=", b"[reference]")

ADDRESS = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


def resolve(source: Any, network: bool = False) -> str:
    """The absolute path of a file, or an address as it is.

    Raises:
        InputError: no path at all, or an address that is none of ``SCHEMES``.
        MissingFileError: no such file.
        VideoError: an address without ``network``, a playlist, an empty file, or no regular file.
    """
    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
        raise InputError(
            f"source={source!r:.80} ({type(source).__name__}) is no video; give a file, a folder of images, "
            "a list of images, or a uint8 array [T, H, W, 3]"
        )
    path = os.fsdecode(os.fspath(source))
    if network and ADDRESS.match(path):
        if path.partition("://")[0].lower() not in SCHEMES:
            raise InputError(f"{path}: network=True opens {', '.join(SCHEMES)} addresses; give a file by its path")
        return path
    try:
        facts = os.stat(path)
    except (OSError, ValueError) as error:
        if ADDRESS.match(path):
            raise MissingFileError(
                f"{path}: no such file; addresses are not opened by themselves: download it first, or say network=True"
            ) from error
        if isinstance(error, PermissionError):
            raise VideoError(f"{path}: this file may not be read; check its permissions") from error
        raise MissingFileError(f"{path}: no such file; check the spelling") from error
    if not stat.S_ISREG(facts.st_mode):
        raise VideoError(f"{path}: a device, pipe or socket is no video file; record it to a file first")
    if facts.st_size == 0:
        raise VideoError(f"{path}: the file is empty (0 bytes); record or download it again")
    _refuse_lists(path)
    return os.path.abspath(path)  # a relative name such as "concat:a.mp4" is a file, also to other libraries


def is_address(path: str) -> bool:
    """Whether a resolved source is an address: a resolved file begins at the root."""
    return ADDRESS.match(path) is not None


def container(path: str) -> InputContainer:
    """Open what ``resolve`` gave.

    Raises:
        VideoError: FFmpeg cannot open it, or its format is not one that may be opened.
    """
    import av
    import av.logging
    from av.error import FFmpegError

    av.logging.set_level(None)  # FFmpeg writes to stderr; what it has to say comes as our errors and warnings
    address = is_address(path)
    rules = {
        "protocol_whitelist": PROTOCOLS if address else "file",
        "format_whitelist": f"{VIDEO},{SOUND},{LIVE}" if address else f"{VIDEO},{SOUND}",
    }
    wait = TIMEOUT if address else None
    try:
        return av.open(path, container_options=rules, metadata_errors="replace", timeout=wait)
    except (FFmpegError, OSError, ValueError) as error:
        claimed = next((name for name, ends in CLAIMS.items() if path.lower().endswith(ends)), None)
        if claimed is not None and not address:
            try:
                return av.open(path, format=claimed, container_options=rules, metadata_errors="replace")
            except (FFmpegError, OSError, ValueError):
                pass
        raise VideoError(
            f"{path}: not a video that FFmpeg can open ({first_line(error)}); "
            f"{'check the address' if address else 'check that the file is complete and really a video'}"
        ) from error


def packets(file: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """``file.demux``, which goes on behind packets of a stream that appears midway: PyAV knows no such stream."""
    while True:
        try:
            yield from file.demux(stream)
            return
        except IndexError:
            continue


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line."""
    text = getattr(error, "strerror", None) or str(error)
    return (text.splitlines() or [type(error).__name__])[0]


def _refuse_lists(path: str) -> None:
    try:
        with open(path, "rb") as file:
            head = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    except OSError as error:
        raise VideoError(f"{path}: the file cannot be read ({first_line(error)}); check its permissions") from error
    text = head.startswith(b"<?xml") and (b"<mpd" in head or b"<smil" in head)
    if text or head.startswith(MARKS) or path.lower().endswith(LISTS):
        raise VideoError(
            f"{path}: a playlist or script that names other files or addresses is not opened; give the video itself"
        )
