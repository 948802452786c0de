"""`flowrra worker --log-format json`: one JSON object per log record, one per line."""

import datetime as dt
import json
import logging

_FIELDS = ("job_id", "task", "attempt", "duration")  # attributes of records about jobs


class JsonLines(logging.Formatter):
    """Formats a log record as one JSON object on one line, with the attributes of records about jobs."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(), "level": record.levelname}
        line |= {"logger": record.name, "message": record.getMessage()}
        line |= {name: vars(record)[name] for name in _FIELDS if name in vars(record)}
        if record.exc_text:  # from a child process, which has formatted it
            line["traceback"] = record.exc_text
        elif record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)
