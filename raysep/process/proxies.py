"""HTTP proxies: none stands between this machine and itself, and one that stands elsewhere is named."""

import os
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "127.0.0.0/8", "::1")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def bypass_loopback() -> None:
    """Add this machine to NO_PROXY, for all clients of HTTP in this process and those that it starts."""
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in PROXIES):
        return
    # Clients read either spelling; both are meant.
    named = ",".join(os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY"))
    hosts = [host.strip() for host in named.split(",") if host.strip()]
    if "*" not in hosts:
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys([*hosts, *LOOPBACK]))


def proxy_of(url: str) -> str | None:
    """The proxy that requests would send a URL through, without its password; None for none.

    >>> os.environ.pop("no_proxy", None) and None
    >>> os.environ |= {"http_proxy": "http://user:secret@proxy:3128", "NO_PROXY": "10.0.0.0/8,.cluster"}
    >>> [proxy_of(f"http://{host}:8265") for host in ("head", "10.1.2.3", "a.cluster")]
    ['http://proxy:3128', None, None]
    >>> del os.environ["http_proxy"], os.environ["NO_PROXY"]
    """
    from requests.utils import get_environ_proxies, select_proxy

    found = select_proxy(url, get_environ_proxies(url))
    if not found:
        return None
    parts = urlsplit(found if "://" in found else f"http://{found}")
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
