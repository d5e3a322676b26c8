"""The registry of the configuration."""

from anabranch.flink_job.config import Config
from anabranch.flink_job.kafka.security import read_secret
from anabranch.operators.registry.http_registry import HttpRegistry, RegistryAccess


def registry_of(config: Config) -> HttpRegistry | None:
    """Return the configured registry; raise ConfigError without its secret."""
    registry = config.registry
    if not registry.url:
        return None
    return HttpRegistry(
        RegistryAccess(
            url=registry.url,
            username=registry.username,
            password=read_secret(registry.password, "password", "registry") if registry.password else "",
            ca_file=registry.ca_file,
            timeout_s=registry.timeout_ms / 1000,
        )
    )
