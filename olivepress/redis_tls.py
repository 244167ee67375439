"""The TLS part of a rediss:// URL, spelled once for Celery, Flower and redis-py.

Each reads it from another place, and Celery alone would take a rediss:// URL without options as "check nothing".
Here the server's certificate and its name are always checked: the password goes to whoever answers.
"""

import ssl
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from olivepress.errors import ServiceUnavailable

SCHEME = "rediss"
CHECKED = {"ssl_cert_reqs": {"required", "CERT_REQUIRED"}, "ssl_check_hostname": {"true", "True", "1"}}
FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


def split_tls(url: str) -> tuple[str, dict[str, Any]]:
    """The URL without its query, and the options of a TLS connection; another URL as it is, and no options.

    `ssl_ca_certs` names the file of the authority that signed the server's certificate; without it the system's
    authorities count. `ssl_certfile` and `ssl_keyfile` are the client's own, where the server asks for one.

    Raises:
        ServiceUnavailable: an option is unknown, turns a check off, or names a file that is not there.
    """
    parts = urlsplit(url)
    if parts.scheme != SCHEME:
        return url, {}
    options: dict[str, Any] = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    for name, value in parse_qsl(parts.query):
        if name in FILES:
            if not Path(value).is_file():
                raise ServiceUnavailable(
                    f"{name} of OLIVEPRESS_REDIS_URL is no file: {value}; mount it, or mend the path"
                )
            options[name] = value
        elif value not in CHECKED.get(name, set()):
            raise ServiceUnavailable(
                f"OLIVEPRESS_REDIS_URL has {name}={value}; the server's certificate is always checked, so only "
                f"{', '.join(FILES)} can be set"
            )
    return parts._replace(query="").geturl(), options
