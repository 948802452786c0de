"""What Django's test runner runs: the promises of a backend, enqueueing in transactions, and the admin."""

from __future__ import annotations

import asyncio
import datetime as dt
import pickle
import time
import unittest
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from unittest import mock

import django
from django.conf import settings
from django.contrib.auth.models import Permission, User
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, transaction
from django.test import SimpleTestCase, TransactionTestCase, override_settings
from django.utils import timezone

from flowrra import ConfigError, Flowrra
from flowrra_extras.django import get_app
from flowrra_extras.django.interface import exception_path
from flowrra_extras.django.project import Options, url_of
from tests.django.project import tasks
from tests.django.project.models import Order
from tests.django.project.versions import (
    NAME,
    InvalidTaskError,
    TaskResult,
    TaskResultDoesNotExist,
    TaskResultMismatch,
    TaskResultStatus,
    default_task_backend,
    task_backends,
    task_enqueued,
    task_finished,
    task_started,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


def with_options(**options: Any) -> Any:
    return override_settings(
        TASKS={"default": {"BACKEND": settings.BACKEND, "QUEUES": ["default", "mail"], "OPTIONS": options}}
    )


class JobsTestCase(TransactionTestCase):
    """Tests with the app of the project, and a worker in this process when a test runs one."""

    def setUp(self) -> None:
        self.addCleanup(lambda: get_app().sync.close())  # or PostgreSQL would not drop the database

    def run_jobs(self, *results: TaskResult[Any]) -> None:
        """Run jobs until these have ended."""
        app = get_app()
        app.sync.run(self._run_jobs(app, [result.id for result in results]))
        for result in results:
            result.refresh()

    async def _run_jobs(self, app: Flowrra, ids: Sequence[str]) -> None:
        async with app:
            for task_id in ids:
                await app.wait_for_result(task_id, 10)
        async with app.client():  # open it for submitters again
            pass

    def ids(self) -> set[str]:
        return {job.id for job in get_app().sync.jobs(limit=1000)}


class PromiseTests(JobsTestCase):
    """What Django promises of every backend."""

    def test_a_task_is_ready_and_then_successful(self) -> None:
        before = timezone.now()
        result = tasks.place.enqueue(item="teapot")
        self.assertEqual(result.status, TaskResultStatus.READY)
        self.assertEqual((result.args, result.kwargs, result.backend), ([], {"item": "teapot"}, "default"))
        self.assertEqual((result.attempts, result.errors, result.is_finished), (0, [], False))
        with self.assertRaises(ValueError):
            _ = result.return_value
        self.run_jobs(result)
        self.assertEqual(result.status, TaskResultStatus.SUCCESSFUL)
        self.assertEqual(Order.objects.get().pk, result.return_value)
        self.assertEqual(result.attempts, 1)
        moments = (before, result.enqueued_at, result.started_at, result.finished_at, timezone.now())
        self.assertEqual(sorted(moments), list(moments))
        self.assertEqual(result.last_attempted_at, result.started_at)

    def test_it_is_found_by_its_id(self) -> None:
        result = tasks.place.enqueue("teapot")
        self.assertEqual(tasks.place.get_result(result.id).args, ["teapot"])
        self.assertEqual(default_task_backend.get_result(result.id).task, tasks.place)
        with self.assertRaises(TaskResultMismatch):
            tasks.tell.get_result(result.id)
        with self.assertRaises(TaskResultDoesNotExist):
            default_task_backend.get_result("no such id")

    def test_async_code_enqueues_and_asks(self) -> None:
        async def ask() -> TaskResult[Any]:
            result = await tasks.place_async.aenqueue("samovar")
            self.assertEqual((await tasks.place_async.aget_result(result.id)).status, TaskResultStatus.READY)
            with self.assertRaises(TaskResultDoesNotExist):
                await default_task_backend.aget_result("no such id")
            return result

        result = asyncio.run(ask())
        self.run_jobs(result)
        asyncio.run(result.arefresh())
        self.assertEqual(result.return_value, Order.objects.get(item="samovar").pk)

    def test_a_higher_priority_runs_first(self) -> None:
        low, high = (tasks.place.using(priority=p).enqueue(str(p)) for p in (-100, 100))
        self.run_jobs(low, high)
        self.assertEqual(list(Order.objects.order_by("pk").values_list("item", flat=True)), ["100", "-100"])
        self.assertEqual((low.task.priority, default_task_backend.get_result(high.id).task.priority), (-100, 100))

    def test_every_queue_that_the_backend_names_is_served(self) -> None:
        result = tasks.place.using(queue_name="mail").enqueue("letter")
        self.run_jobs(result)
        self.assertEqual(result.status, TaskResultStatus.SUCCESSFUL)
        self.assertEqual(default_task_backend.get_result(result.id).task.queue_name, "mail")

    def test_what_is_invalid_is_refused(self) -> None:
        wrong: list[dict[str, Any]] = [
            {"queue_name": "nowhere"}, {"priority": 101}, {"priority": 1.5}, {"run_after": dt.datetime(2030, 1, 1)},  # noqa: DTZ001
        ]  # fmt: skip
        for options in wrong:
            with self.subTest(options), self.assertRaises(InvalidTaskError):
                tasks.place.using(**options)

    def test_run_after_is_waited_for(self) -> None:
        moment = timezone.now() + dt.timedelta(days=1)
        later = tasks.place.using(run_after=moment).enqueue("later")
        past = tasks.place.using(run_after=timezone.now() - dt.timedelta(days=1)).enqueue("past")
        self.run_jobs(past)
        later.refresh()
        self.assertEqual((later.status, past.status), (TaskResultStatus.READY, TaskResultStatus.SUCCESSFUL))
        found = default_task_backend.get_result(later.id).task.run_after
        assert found is not None
        self.assertLess(abs(found - moment), dt.timedelta(milliseconds=1))

    def test_the_result_of_enqueue_is_that_of_the_store(self) -> None:
        result = tasks.place.enqueue("now")
        self.assertEqual(result, tasks.place.get_result(result.id))
        with transaction.atomic():
            inside = tasks.place.enqueue("in a transaction")
        self.assertEqual(inside, tasks.place.get_result(inside.id))

    def test_plain_calls_do_not_block_an_event_loop(self) -> None:
        async def enqueue() -> None:
            tasks.place.enqueue("teapot")

        async def ask() -> None:
            default_task_backend.get_result("an id")

        for call, text in ((enqueue(), "use aenqueue()"), (ask(), "use aget_result() or arefresh()")):
            with self.subTest(text), self.assertRaisesMessage(SynchronousOnlyOperation, text):
                asyncio.run(call)

    @unittest.skipIf(django.VERSION < (6, 1), "new in Django 6.1")
    def test_a_task_is_pickled_by_its_name(self) -> None:
        task: Any = tasks.fail_and_look_on
        again = pickle.loads(pickle.dumps(task.using(max_retries=2, priority=7)))  # noqa: S301 (our own)
        self.assertEqual(again, task.using(max_retries=2, priority=7))

    @override_settings(USE_TZ=False)
    def test_moments_are_naive_where_django_says_so(self) -> None:
        now = timezone.now()
        later = tasks.place.using(run_after=now + dt.timedelta(days=1)).enqueue("later")
        result = tasks.place.using(run_after=now).enqueue("now")
        self.run_jobs(result)
        for moment in (result.enqueued_at, result.started_at, result.finished_at):
            assert moment is not None
            self.assertLess(abs(moment - now), dt.timedelta(minutes=1))
        found = default_task_backend.get_result(later.id).task.run_after
        assert found is not None
        self.assertLess(abs(found - now - dt.timedelta(days=1)), dt.timedelta(milliseconds=1))

    def test_a_task_goes_to_the_backend_that_it_names(self) -> None:
        backends = {
            name: {"BACKEND": settings.BACKEND, "OPTIONS": {"url": "memory://"}} for name in ("default", "mails")
        }
        with override_settings(TASKS=backends):
            result = tasks.place.using(backend="mails").enqueue("letter")
            self.assertEqual(result.backend, "mails")
            self.assertEqual([job.id for job in get_app("mails").sync.jobs()], [result.id])
            self.assertEqual(self.ids(), set())
            self.assertEqual(task_backends["mails"].get_result(result.id).backend, "mails")
            with self.assertRaises(TaskResultDoesNotExist):
                default_task_backend.get_result(result.id)
            get_app("mails").sync.cancel(result.id)
            get_app("mails").sync.close()

    def test_a_task_gets_its_context(self) -> None:
        result = tasks.tell.enqueue("hi")
        self.run_jobs(result)
        self.assertEqual(result.return_value, ["hi", 1, result.id, result.worker_ids])

    def test_what_a_task_raises_is_an_error_of_the_result(self) -> None:
        result = tasks.fail.enqueue("no luck")
        self.run_jobs(result)
        self.assertEqual(result.status, TaskResultStatus.FAILED)
        (error,) = result.errors
        self.assertIs(error.exception_class, ValueError)
        self.assertIn("raise ValueError(text)\nValueError: no luck", error.traceback)
        with self.assertRaisesMessage(ValueError, "Task failed"):
            _ = result.return_value

    def test_arguments_and_results_are_those_of_json(self) -> None:
        before = self.ids()
        odd: list[Any] = [object(), {1, 2}, timezone.now()]
        for wrong in odd:
            with self.subTest(wrong), self.assertRaises(TypeError):
                tasks.place.enqueue(wrong)
        self.assertEqual(self.ids(), before)
        result = tasks.give_odd.enqueue()
        self.run_jobs(result)
        self.assertIs(result.errors[0].exception_class, TypeError)

    def test_the_signals_are_sent_with_the_result_as_it_is_then(self) -> None:
        seen: list[tuple[str, str, TaskResultStatus]] = []

        def receiver(name: str) -> Any:
            def receive(sender: Any, task_result: TaskResult[Any], **_: Any) -> None:
                self.assertIs(sender, type(task_backends["default"]))
                seen.append((name, task_result.id, task_result.status))

            return receive

        signals = {"enqueued": task_enqueued, "started": task_started, "finished": task_finished}
        receivers = {name: receiver(name) for name in signals}
        for name, signal in signals.items():
            signal.connect(receivers[name])
        try:
            with self.assertLogs(NAME, "ERROR") as logged:
                results: list[TaskResult[Any]] = [tasks.place.enqueue("teapot"), tasks.fail.enqueue("no luck")]
                self.run_jobs(*results)
        finally:
            for name, signal in signals.items():
                signal.disconnect(receivers[name])
        ends = ("SUCCESSFUL", "FAILED")
        for result, end in zip(results, ends, strict=True):
            expected = [("enqueued", "READY"), ("started", "RUNNING"), ("finished", end)]
            self.assertEqual([(name, status) for name, task_id, status in seen if task_id == result.id], expected)
        self.assertIn("ValueError: no luck", logged.output[0])

    def test_a_cancelled_job_has_failed(self) -> None:
        result = tasks.place.enqueue("teapot")
        get_app().sync.cancel(result.id)
        result.refresh()
        self.assertEqual((result.status, result.attempts), (TaskResultStatus.FAILED, 0))
        self.assertEqual(result.errors[0].exception_class_path, "flowrra.FlowrraError")

    def test_the_checks_have_nothing_to_say(self) -> None:
        self.assertEqual(default_task_backend.check(), [])


class FlowrraTests(JobsTestCase):
    """What Flowrra has beside that."""

    def test_wrong_arguments_are_refused_when_they_are_given(self) -> None:
        with self.assertRaisesMessage(TypeError, "place(item: str) -> int: missing a required argument: 'item'"):
            tasks.place.enqueue()  # type: ignore[call-arg]
        with self.assertRaises(TypeError):
            tasks.tell.enqueue("a", "b")  # type: ignore[call-arg]

    def test_an_option_that_cannot_work_is_refused_where_it_is_given(self) -> None:
        task: Any = tasks.place
        with self.assertRaisesMessage(ConfigError, "max_retries must be at least 0, not -1"):
            task.using(max_retries=-1)
        with self.assertRaises(TypeError):
            task.using(max_retry=1)
        with with_options(url="nonsense://"):
            (error,) = default_task_backend.check()
            self.assertEqual(error.id, "flowrra.E001")
            self.assertIn("no broker has the scheme 'nonsense'", error.msg)

    def test_a_task_is_tried_again_if_it_is_to_be(self) -> None:
        task: Any = tasks.fail_first
        once, again = task.enqueue(), task.using(max_retries=2).enqueue()
        self.run_jobs(once, again)
        self.assertEqual((once.status, once.attempts), (TaskResultStatus.FAILED, 1))
        self.assertEqual((again.return_value, again.attempts, len(again.errors)), (2, 2, 1))
        self.assertIs(again.errors[0].exception_class, LookupError)
        self.assertLess(again.started_at, again.last_attempted_at)

    def test_a_task_says_what_is_tried_again(self) -> None:
        task: Any = tasks.fail_and_look_on
        with with_options(max_retries=1, retry_delay=0.01):
            result = task.using(meta={"order": 7}).enqueue()
            self.run_jobs(result)
            self.assertEqual((result.status, result.attempts), (TaskResultStatus.FAILED, 1))
            self.assertEqual(get_app().sync.get_job(result.id).meta, {"order": 7})
            with self.assertRaisesMessage(TypeError, "cannot be submitted with 'retry_on'"):
                task.using(retry_on=LookupError).enqueue()
            get_app().sync.close()

    def test_what_was_declared_on_the_app_is_there_under_other_settings_too(self) -> None:
        app = get_app()
        if "other" not in app.registry:
            app.task(name="other")(plain_function)
        with with_options(url="memory://"):
            self.assertIs(get_app(), app)
            self.assertIn("other", app.registry)
            app.sync.submit(app.registry["other"])
            self.assertEqual(len(self.ids()), 1)
            app.sync.cancel(self.ids().pop())

    def test_a_job_has_tags_and_a_task_may_snooze_and_cancel(self) -> None:
        task: Any = tasks.snooze_and_cancel
        result = task.using(tags=["tenant:42"]).enqueue()
        self.assertEqual(get_app().sync.get_job(result.id).tags, ("tenant:42",))
        self.run_jobs(result)
        self.assertEqual((result.status, result.attempts, len(result.errors)), (TaskResultStatus.FAILED, 2, 1))
        self.assertEqual(result.errors[0].traceback, "no longer needed")

    def test_a_timeout_is_one_of_the_tasks_own(self) -> None:
        result = tasks.dawdle.enqueue()
        self.run_jobs(result)
        self.assertEqual(result.errors[0].exception_class_path, "flowrra.TaskTimeoutError")

    def test_the_project_may_set_defaults(self) -> None:
        with with_options(max_retries=1, retry_delay=0.01):
            result = tasks.fail_first.enqueue()
            self.run_jobs(result)
            self.assertEqual(result.return_value, 2)
            get_app().sync.close()

    def test_no_connection_is_left_over_from_a_job(self) -> None:
        results = [tasks.had_connection.enqueue() for _ in range(3)]
        self.run_jobs(*results)
        self.assertEqual([result.return_value for result in results], [False, False, False])

    def test_jobs_of_other_tasks_are_no_results_of_django(self) -> None:
        app = get_app()
        plain = app.registry.get("plain") or app.task(name="plain")(plain_function)
        with self.assertRaisesMessage(TaskResultDoesNotExist, "which this process does not know"):
            default_task_backend.get_result(app.sync.submit(plain))


class TransactionTests(JobsTestCase):
    """A job and the rows that it is about are there both, or neither."""

    def enqueue_and(self, error: Exception | None) -> TaskResult[Any]:
        with transaction.atomic():
            Order.objects.create(item="teapot")
            result = tasks.place.enqueue("receipt")
            with self.assertRaises(TaskResultDoesNotExist):  # others do not see it yet
                result.refresh()
            if error is not None:
                self.result = result
                raise error
        return result

    def test_a_commit_brings_both(self) -> None:
        result = self.enqueue_and(None)
        self.run_jobs(result)
        self.assertEqual(Order.objects.get(pk=result.return_value).item, "receipt")

    def test_a_rollback_leaves_neither(self) -> None:
        with self.assertRaises(LookupError):
            self.enqueue_and(LookupError("no stock"))
        self.assertNotIn(self.result.id, self.ids())
        self.assertFalse(Order.objects.exists())

    def test_a_savepoint_takes_its_job_with_it(self) -> None:
        with transaction.atomic():
            kept = tasks.place.enqueue("kept")
            try:
                with transaction.atomic():
                    lost = tasks.place.enqueue("lost")
                    raise LookupError
            except LookupError:
                pass
        self.assertIn(kept.id, self.ids())
        self.assertNotIn(lost.id, self.ids())

    def test_a_transaction_that_has_written_is_not_waited_for_by_its_own_first_job(self) -> None:
        get_app().sync.close()
        began = time.monotonic()  # an open that waited for the lock would do so for 30 s
        with transaction.atomic():
            Order.objects.create(item="teapot")
            result = tasks.place.enqueue("receipt")
        self.assertLess(time.monotonic() - began, 5)
        self.assertIn(result.id, self.ids())

    def test_a_broken_transaction_takes_no_job(self) -> None:
        with transaction.atomic():
            transaction.set_rollback(True)
            with self.assertRaises(transaction.TransactionManagementError):
                tasks.place.enqueue("teapot")

    def test_a_connection_without_autocommit_is_in_a_transaction(self) -> None:
        transaction.set_autocommit(False)
        try:
            lost = tasks.place.enqueue("lost")
            transaction.rollback()
            kept = tasks.place.enqueue("kept")
            transaction.commit()
        finally:
            transaction.set_autocommit(True)
        self.assertNotIn(lost.id, self.ids())
        self.assertIn(kept.id, self.ids())

    def test_a_url_of_the_same_database_is_recognised(self) -> None:
        with with_options(url=url_of(connection)):
            self.test_a_rollback_leaves_neither()
            self.test_a_commit_brings_both()
            get_app().sync.close()


class ElsewhereTests(JobsTestCase):
    """Jobs in another store are submitted when the transaction has been committed."""

    def other_urls(self) -> list[str]:
        name = f"{uuid.uuid4().hex}.db"
        urls = ["memory://", f"sqlite:///{Path(settings.FOLDER) / name}"]
        if connection.vendor == "postgresql":
            urls.append(f"{url_of(connection).rpartition('/')[0]}/postgres?schema=flowrra_{uuid.uuid4().hex}")
            self.addCleanup(_drop_schema, urls[-1])
        return urls

    def test_a_job_comes_with_the_commit(self) -> None:
        for url in self.other_urls():
            with self.subTest(url), with_options(url=url):
                seen: list[str] = []

                def receive(task_result: TaskResult[Any], seen: list[str] = seen, **_: Any) -> None:
                    seen.append(task_result.id)

                task_enqueued.connect(receive)
                with transaction.atomic():
                    result = tasks.place.enqueue("teapot")
                    self.assertEqual((self.ids(), seen), (set(), []))
                self.assertEqual((self.ids(), seen), ({result.id}, [result.id]))
                with self.assertRaises(LookupError), transaction.atomic():
                    tasks.place.enqueue("teapot")
                    raise LookupError
                self.assertEqual(self.ids(), {result.id})
                get_app().sync.close()
                task_enqueued.disconnect(receive)


def plain_function() -> None: ...


def _drop_schema(url: str) -> None:
    import psycopg

    place, _, schema = url.partition("?schema=")
    with psycopg.connect(place, autocommit=True) as link:
        link.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE".encode())


class AdminTests(JobsTestCase):
    """The dashboard in the admin, for those whom Django lets in."""

    ROOT = "/admin/flowrra/job/"

    def log_in(self, *permissions: str) -> None:
        user = User.objects.create(username="ada", is_staff=True)
        for name in permissions:
            user.user_permissions.add(Permission.objects.get(content_type__app_label="flowrra", codename=name))
        self.client.force_login(user)

    def cancel(self, result: TaskResult[Any]) -> int:
        place = f"{self.ROOT}api/jobs/{result.id}/cancel"
        return self.client.post(place, "{}", content_type="application/json").status_code

    def test_a_stranger_is_asked_to_log_in(self) -> None:
        response = self.client.get(self.ROOT)
        self.assertEqual((response.status_code, response["Location"]), (302, f"/admin/login/?next={self.ROOT}"))

    def test_one_without_permission_sees_nothing(self) -> None:
        self.log_in()
        self.assertEqual(self.client.get(self.ROOT).status_code, 403)
        self.assertNotContains(self.client.get("/admin/"), self.ROOT)

    def test_who_may_view_jobs_looks_on(self) -> None:
        self.log_in("view_job")
        result = tasks.place.enqueue("teapot")
        self.assertContains(self.client.get("/admin/"), f'href="{self.ROOT}"')
        self.assertContains(self.client.get(f"{self.ROOT}jobs"), result.id)
        self.assertEqual(self.cancel(result), 403)
        result.refresh()
        self.assertEqual(result.status, TaskResultStatus.READY)

    def test_who_may_change_jobs_acts_and_is_named(self) -> None:
        self.log_in("view_job", "change_job")
        result = tasks.place.enqueue("teapot")
        self.assertEqual(self.cancel(result), 200)
        (note,) = get_app().sync.get_job(result.id).history
        self.assertEqual((note.outcome, note.worker), ("note", "ada"))


class SettingsTests(SimpleTestCase):
    """What the settings may say."""

    def test_a_wrong_name_is_refused_with_the_nearest_one(self) -> None:
        with self.assertRaisesMessage(ConfigError, "no option 'max_retry'; did you mean 'max_retries'?"):
            Options({"max_retry": 1})
        for name in ("batch", "executor", "cpu_bound"):
            with self.subTest(name), self.assertRaisesMessage(ConfigError, f"no option {name!r}"):
                Options({name: 1})
        message = "FLOWRRA has no setting 'EXECUTOR_IO_WORKER'; did you mean 'EXECUTOR_IO_WORKERS'?"
        with override_settings(FLOWRRA={"EXECUTOR_IO_WORKER": 5}), self.assertRaisesMessage(ConfigError, message):
            Options({})

    def test_a_backend_may_differ_from_the_project(self) -> None:
        with override_settings(FLOWRRA={"EXECUTOR_IO_WORKERS": 5, "BROKER_URL": "memory://"}):
            options = Options({"executor_io_workers": 7, "results": "sqlite://"})
            config = options.config(options.url)
        self.assertEqual(
            (config.executor.io_workers, config.broker.url, config.backend.url), (7, "memory://", "sqlite://")
        )

    def test_the_url_is_made_of_the_database(self) -> None:
        place = {"NAME": "app", "USER": "", "PASSWORD": "", "HOST": "", "PORT": "", "OPTIONS": {}}
        for changes, url in self.URLS:
            stand_in = mock.Mock(vendor="postgresql", alias="default", settings_dict={**place, **changes})
            with self.subTest(url):
                self.assertEqual(url_of(stand_in), url)

    URLS: ClassVar[list[tuple[dict[str, Any], str]]] = [
        ({}, "postgresql:///app?host=%2Fvar%2Frun%2Fpostgresql"),
        ({"HOST": "db", "PORT": 5433}, "postgresql://db:5433/app"),
        ({"HOST": "db", "USER": "ada", "PASSWORD": "a/b@c"}, "postgresql://ada:a%2Fb%40c@db/app"),
        ({"HOST": "db", "PASSWORD": "a/b@c:"}, "postgresql://:a%2Fb%40c%3A@db/app"),  # the user is that of libpq
        ({"HOST": "db", "USER": "ada"}, "postgresql://ada@db/app"),
        ({"HOST": "db", "OPTIONS": {"sslmode": "require", "pool": True}}, "postgresql://db/app?sslmode=require"),
        ({"HOST": "/run/pg", "PORT": "6432"}, "postgresql:///app?host=%2Frun%2Fpg&port=6432"),
    ]

    def test_a_database_that_cannot_hold_jobs_is_refused(self) -> None:
        for vendor, settings_dict in (("mysql", {}), ("postgresql", {"NAME": "", "OPTIONS": {"service": "app"}})):
            with self.subTest(vendor), self.assertRaisesMessage(ConfigError, "url"):
                url_of(mock.Mock(vendor=vendor, alias="default", settings_dict=settings_dict))

    def test_another_backend_has_no_app(self) -> None:
        other = {"default": {"BACKEND": f"{NAME}.backends.dummy.DummyBackend"}}
        with override_settings(TASKS=other), self.assertRaisesMessage(ConfigError, "DummyBackend"):
            get_app()

    def test_an_exception_is_found_in_its_traceback(self) -> None:
        for text, traceback, path in (
            ("ValueError: no", "Traceback ...\n  ValueError\nValueError: no", "builtins.ValueError"),
            ("Odd", "Traceback ...\nshop.errors.Odd", "shop.errors.Odd"),
            ("Odd: a\nb", "a.Odd: x\n\nDuring ...\nb.Odd: a\nb", "b.Odd"),
            ("ExceptionGroup: two", "  + Exception Group ...\n  | ExceptionGroup: two", "builtins.ExceptionGroup"),
            ("cancelled by hand", None, "flowrra.FlowrraError"),
        ):
            with self.subTest(text):
                self.assertEqual(exception_path(text, traceback), path)

    def test_the_app_is_of_the_project(self) -> None:
        self.assertIsInstance(get_app(), Flowrra)
