"""Logs as JSON lines on stderr: properties of requests, never the text of a prompt or an answer."""

import json
import logging
import sys
from datetime import datetime, timezone

log = logging.getLogger("megrez.serve")


class JsonLines(logging.Formatter):
    """One object per record: time (UTC), level, event, and the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False).encode(errors="replace").decode()


def start_logging() -> None:
    """Write our log, and uvicorn's warnings, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, level in (("megrez", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
