"""Adapters and tools that are not part of the single file, one module or package for each dependency.

What is where:

    redis/         the broker: the scripts are lua/*.lua, such as claim.lua; scripts loads them, calls has their
                   arguments and answers, changes applies the rules, search finds jobs, connection reconnects
    postgres/      the broker: the SQL is in schema.sql and statements
    scheduler/     stored schedules: scheduler fires them; sql (with mysql and postgresql), redis and store keep them
    dashboard/     app has the table of all pages and actions; a module for each page: overview, jobs, tasks, limits,
                   schedules, failures, health; job_search reads the search line, html renders, auth decides who may
                   do what, live sends updates; asgi, wsgi and the modules of the frameworks serve it
    commands/      the operator's commands, such as `flowrra jobs`; its table says which module has which
    django/        the backend of Django's tasks, the entry in the admin, and the commands of manage.py
    testing/       what users test with: isolated apps, a manual clock, the pytest plugin
    contracts/     the tests that every broker and every store of schedules must pass
    metrics        what Prometheus reads, and figures of the workers' activity
    otel           traces and metrics with OpenTelemetry
    migrate        moves jobs from one broker to another
    cron_words     cron expressions in words
    cron_union     several cron expressions as one
    interpreters   CPU slots as subinterpreters
    batching       sends simultaneous calls in groups
    backoff        pauses while a server does not answer
    urls           reads the URLs of servers, and hides their passwords
"""
