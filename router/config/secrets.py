"""Secrets from settings or files, and when the admin port needs one."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from router.config.schema import ConfigError
from router.config.serving import AuthConfig

MIN_SECRET_BYTES = 16


def read_salt_secret(auth: AuthConfig) -> bytes:
    """Raises ConfigError."""
    return read_secret("auth.salt_secret", auth.salt_secret, auth.salt_secret_file)


def read_secret(key: str, text: str, file: str) -> bytes:
    """Reads a secret from its setting or its file and strips white space; empty if there is none. Raises ConfigError."""
    if text and file:
        raise ConfigError(f"{key}=***: must not be given together with {key}_file")
    named, secret = f"{key}=***", text.encode()
    if file:
        named = f"{key}_file={file!r}"
        try:
            secret = Path(file).read_bytes()
        except OSError as error:
            raise ConfigError(f"{named}: cannot be read: {error.strerror}") from None
    elif not secret:
        return b""
    if len(secret := secret.strip()) < MIN_SECRET_BYTES:
        raise ConfigError(f"{named}: must hold at least {MIN_SECRET_BYTES} bytes")
    return secret


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
