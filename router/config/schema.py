"""The whole configuration, and the error for a wrong one."""

from __future__ import annotations

from fnmatch import fnmatchcase

from router.config.context import ContextConfig
from router.config.routing import AdmissionConfig, IndexConfig, PolicyConfig, ResumptionConfig, RetriesConfig
from router.config.section import Section
from router.config.serving import AdminConfig, AuthConfig, LimitsConfig, LogConfig, ServerConfig, TracingConfig
from router.config.sessions import ESTIMATE, ModelConfig, SessionsConfig, TokensConfig
from router.config.workers import FleetConfig, LoadConfig, ProbesConfig, TimeoutsConfig
from router.runtime.logs import redact


class ConfigError(Exception):
    """One line that names the key, its value and its bound. It shows no password of a URL, whatever it quotes."""

    def __init__(self, text: str) -> None:
        super().__init__(redact(text))


class Config(Section, frozen=True):
    """The whole configuration."""

    server: ServerConfig = ServerConfig()
    auth: AuthConfig = AuthConfig()
    admin: AdminConfig = AdminConfig()
    limits: LimitsConfig = LimitsConfig()
    fleet: FleetConfig = FleetConfig()
    probes: ProbesConfig = ProbesConfig()
    load: LoadConfig = LoadConfig()
    policy: PolicyConfig = PolicyConfig()
    index: IndexConfig = IndexConfig()
    retries: RetriesConfig = RetriesConfig()
    resumption: ResumptionConfig = ResumptionConfig()
    admission: AdmissionConfig = AdmissionConfig()
    sessions: SessionsConfig = SessionsConfig()
    context: ContextConfig = ContextConfig()
    tokens: TokensConfig = TokensConfig()
    models: dict[str, ModelConfig] = {}
    timeouts: TimeoutsConfig = TimeoutsConfig()
    log: LogConfig = LogConfig()
    tracing: TracingConfig = TracingConfig()

    def tokenizer_of(self, model: str) -> str:
        """A value of ``tokens.tokenizer``, never empty."""
        named = self.models.get(model)
        patterns = (each for pattern, each in self.models.items() if each.tokenizer and fnmatchcase(model, pattern))
        found = named if named is not None and named.tokenizer else next(patterns, None)
        return (found.tokenizer if found is not None else self.tokens.tokenizer) or ESTIMATE


MODELS, ANY_MODEL = "models", "NAME"
"""The table that has one table for each model, and the placeholder for a model's name in the reference."""
