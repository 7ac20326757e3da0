"""HTTP proxies: bypass them for loopback addresses, and find the proxy of a URL."""

import os
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "127.0.0.0/8", "::1")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def bypass_loopback() -> None:
    """Add loopback addresses to NO_PROXY, for HTTP clients of this process and its children."""
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in PROXIES):
        return
    # Some clients read the lower-case name, others the upper-case one.
    named = ",".join(os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY"))
    hosts = [host.strip() for host in named.split(",") if host.strip()]
    if "*" not in hosts:
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys([*hosts, *LOOPBACK]))


def proxy_of(url: str) -> str | None:
    """The proxy that `requests` uses for a URL, without its password; None without a proxy.

    >>> os.environ.pop("no_proxy", None) and None
    >>> os.environ |= {"http_proxy": "http://user:secret@proxy:3128", "NO_PROXY": "10.0.0.0/8,.cluster"}
    >>> [proxy_of(f"http://{host}:8265") for host in ("head", "10.1.2.3", "a.cluster")]
    ['http://proxy:3128', None, None]
    >>> del os.environ["http_proxy"], os.environ["NO_PROXY"]
    """
    from requests.utils import get_environ_proxies, select_proxy

    proxy = select_proxy(url, get_environ_proxies(url))
    if not proxy:
        return None
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
