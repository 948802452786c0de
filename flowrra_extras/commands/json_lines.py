"""`flowrra worker --log-format json`: a log record as one JSON object a line."""

import datetime as dt
import json
import logging

_FIELDS = ("job_id", "task", "attempt", "duration")  # what records of jobs carry beside their text


class JsonLines(logging.Formatter):
    """A log record as one JSON object a line, with what it carries beside its text."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(), "level": record.levelname}
        line |= {"logger": record.name, "message": record.getMessage()}
        line |= {name: vars(record)[name] for name in _FIELDS if name in vars(record)}
        if record.exc_text:  # of a child, which has formatted it there
            line["traceback"] = record.exc_text
        elif record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)
