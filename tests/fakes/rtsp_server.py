"""RTSP servers for tests, run by the system's Python, which has GStreamer's bindings.

Prints two ports. At the first `/live` moves, `/still` does not, `/sizes` changes its resolution. At
the second `/live` wants the user `user` and the password `pass/word`.
"""

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

SIZE = "video/x-raw,width={},height={},framerate=15/1"
LINE = (
    "( videotestsrc is-live=true pattern={} ! capsfilter name=size caps={} ! x264enc "
    "tune=zerolatency key-int-max=15 speed-preset=ultrafast threads=1 bitrate=300 ! "
    "h264parse config-interval=-1 ! rtph264pay name=pay0 pt=96 config-interval=-1 )"
)


def alternate(factory, media):
    size = media.get_element().get_by_name("size")
    sizes = [(320, 240), (640, 480)]

    def change():
        sizes.reverse()
        size.set_property("caps", Gst.Caps.from_string(SIZE.format(*sizes[0])))
        return True

    GLib.timeout_add(1000, change)


def serve(patterns, auth=None):
    server = GstRtspServer.RTSPServer.new()
    server.set_address("127.0.0.1")
    server.set_service("0")
    for name, pattern in patterns.items():
        factory = GstRtspServer.RTSPMediaFactory.new()
        factory.set_launch(LINE.format(pattern, SIZE.format(320, 240)))
        factory.set_shared(True)
        if name == "sizes":
            factory.connect("media-configure", alternate)
        permissions = GstRtspServer.RTSPPermissions()
        permissions.add_permission_for_role("user", "media.factory.access", True)
        permissions.add_permission_for_role("user", "media.factory.construct", True)
        factory.set_permissions(permissions)
        server.get_mount_points().add_factory("/" + name, factory)
    if auth is not None:
        server.set_auth(auth)
    server.attach(None)
    return server


Gst.init(None)
lock = GstRtspServer.RTSPAuth.new()
token = GstRtspServer.RTSPToken()
token.set_string("media.factory.role", "user")
lock.add_basic(GstRtspServer.RTSPAuth.make_basic("user", "pass/word"), token)
servers = [
    serve({"live": "ball", "still": "smpte75", "sizes": "ball"}),
    serve({"live": "ball"}, lock),
]
print(*(server.get_bound_port() for server in servers), flush=True)
GLib.MainLoop().run()
