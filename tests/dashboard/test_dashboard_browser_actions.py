"""Each action in a real browser, as far as it goes with scripts and without."""

import json

import pytest
from selenium.webdriver.remote.webelement import WebElement

from flowrra import TaskStatus
from tests.support.browser import Browser
from tests.support.dashboard_shop import Shop

SCRIPT = pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])


def failed(shop: Shop, why: str) -> str:
    """A new job that has failed."""
    return shop.finished(shop.app.sync.submit(shop.tasks.fail, why)).id


def waiting(shop: Shop, name: str) -> str:
    """A new job that is due in an hour."""
    return shop.app.sync.submit_many(shop.tasks.greet.options(delay=3600), [(name, 1)])[0]


def refused(tab: Browser) -> str:
    """Why the form was refused. The browser complains of the answer's status, and of nothing else."""
    reason = tab.text(".problem")
    assert all("422" in complaint for complaint in tab.complaints())
    return reason


@SCRIPT
def test_a_failed_job_is_requeued(script: bool, tab: Browser, shop: Shop) -> None:
    job = failed(shop, "once more")
    tab.open(f"/jobs/{job}", script=script)
    tab.click(".acts button", "Requeue")
    tab.says("Requeued 1 job.", ".notice")
    assert tab.path.partition("?")[0] == f"/jobs/{job}"
    shop.until(lambda: shop.job(job).attempt == 2)
    note = next(attempt for attempt in shop.job(job).history if attempt.outcome == "note")
    assert (note.error, note.worker) == ("requeued", "dashboard (127.0.0.1)")


@SCRIPT
def test_a_waiting_job_is_cancelled_and_deleted(script: bool, tab: Browser, shop: Shop) -> None:
    job = waiting(shop, "nobody")
    tab.open(f"/jobs/{job}", script=script)
    tab.click(".acts button", "Cancel")
    tab.says("Cancelled 1 job.", ".notice")
    assert shop.job(job).status is TaskStatus.CANCELLED
    tab.click(".acts summary", "Delete")
    tab.says("Delete this job permanently?", ".pop")
    tab.click(".pop button")
    tab.says("Deleted 1 job.", ".notice")
    assert job not in [other.id for other in shop.jobs()]


@SCRIPT
def test_a_job_is_cloned_with_other_arguments(script: bool, tab: Browser, shop: Shop) -> None:
    job = waiting(shop, "Barbara")
    tab.open(f"/jobs/{job}", script=script)
    tab.click(".acts a", "Clone")
    tab.fill("#args", "[1, 2, 3, 4, 5]")
    tab.click("button.main")
    refused(tab)
    assert tab.one("#args").get_attribute("value") == "[1, 2, 3, 4, 5]"
    tab.fill("#args", json.dumps(["Liskov", 2]))
    tab.click("button.main")
    tab.says("The clone was submitted.", ".notice")
    clone = tab.path.removeprefix("/jobs/").partition("?")[0]
    assert clone != job
    assert shop.finished(clone).result == "Hello, Liskov! Hello, Liskov! "


@SCRIPT
def test_selected_jobs_are_requeued(script: bool, tab: Browser, shop: Shop) -> None:
    jobs = [failed(shop, f"selected {number}") for number in range(3)]
    tab.open("/jobs?search=state:failed+selected", script=script)
    for job in jobs[:2]:
        tab.click(f"[value='{job}']")
    tab.click("#bulk summary", "Requeue")
    tab.says("Requeue the 2 selected shop.fail?" if script else "Requeue the selected jobs?", "#bulk .pop")
    tab.click("#bulk .pop button", "Requeue")
    if not script:  # who cannot count asks once more
        tab.says("Requeue these 2 jobs?", "#sure")
        assert [shop.job(job).attempt for job in jobs] == [1, 1, 1]
        tab.click("#sure button")
    tab.says("Requeued 2 jobs.", ".notice")
    assert tab.path.startswith("/jobs?search=")
    tab.click(".notice a")
    tab.until(lambda: {box.get_attribute("value") for box in tab.all("[name=ids]")} == set(jobs[:2]), "these two jobs")
    shop.until(lambda: [shop.job(job).attempt for job in jobs] == [2, 2, 1])


@SCRIPT
def test_all_jobs_that_match_are_deleted(script: bool, tab: Browser, shop: Shop) -> None:
    jobs = {failed(shop, f"thunder {number}") for number in range(3)}
    tab.open("/jobs?search=state:failed+error:thunder", script=script)
    tab.click(".every > summary")
    tab.says("3 jobs, on this page and on all other pages", ".every")
    tab.click(".every .sure summary", "Delete all")
    tab.says("Delete 3 jobs permanently?", ".every")
    tab.click(".every .sure button", "Delete")
    tab.says("Deleted 3 jobs.", ".notice")
    tab.says("No job matches the search.")
    assert jobs.isdisjoint(job.id for job in shop.jobs())


def test_a_question_holds_still_and_means_what_it_says(tab: Browser, shop: Shop) -> None:
    jobs = [failed(shop, f"fog {number}") for number in range(2)]
    tab.open("/jobs?search=state:failed+error:fog")
    tab.click(".every > summary")
    tab.click(".every .sure summary", "Requeue all")
    tab.says("Requeue 2 jobs?", ".every")
    later = failed(shop, "fog 2")
    tab.one(f"tr[data-key='{later}']")  # the list goes on
    tab.says("Requeue 2 jobs?", ".every")
    tab.click(".every .sure button", "Requeue")
    tab.says("Requeued 2 jobs.", ".notice")
    shop.until(lambda: [shop.job(job).attempt for job in (*jobs, later)] == [2, 2, 1])


@SCRIPT
def test_what_was_cancelled_by_mistake_is_requeued(script: bool, tab: Browser, shop: Shop) -> None:
    queue = "regret" if script else "remorse"
    jobs = [shop.app.sync.submit_many(shop.tasks.greet.options(delay=3600, queue=queue), [("x", 1)])[0] for _ in "ab"]
    tab.open(f"/jobs?search=queue:{queue}", script=script, width=390)
    tab.click(".every > summary")
    tab.click(".every .sure summary", "Cancel all")
    tab.click(".every .sure button", "Cancel")
    tab.says("Cancelled 2 jobs.", ".notice")
    tab.click(".notice summary", "Requeue")
    tab.says("as soon as possible", ".notice .pop")
    box = tab.js("const b = arguments[0].getBoundingClientRect(); return [b.left, b.right]", tab.one(".notice .pop"))
    assert 0 <= box[0] < box[1] <= 390
    assert not script or tab.axe() == []
    tab.click(".notice .pop button", "Requeue 2 jobs")
    tab.says("Requeued 2 jobs.", ".notice")
    assert [shop.job(job).status for job in jobs] == [TaskStatus.PENDING] * 2
    for job in jobs:
        shop.app.sync.cancel(job)  # whose queue nobody serves


@SCRIPT
def test_a_group_of_failures_is_requeued(script: bool, tab: Browser, shop: Shop) -> None:
    word = "snow" if script else "hail"
    jobs = [failed(shop, f"{word} of the year {number}") for number in (2024, 2025)]

    def group() -> WebElement | None:
        tab.open("/failures", script=script)  # the groups may be of a moment ago
        return next((row for row in tab.all("tbody tr") if row.text.startswith("2") and word in row.text), None)

    row = tab.until(group, "a group of two")
    next(ask for ask in row.find_elements("css selector", "summary") if ask.text == "Requeue…").click()
    tab.says("Requeue 2 shop.fail?", ".sure[open] .pop")
    tab.click(".sure[open] button")
    tab.says("Requeued 2 jobs.", ".notice")
    shop.until(lambda: [shop.job(job).attempt for job in jobs] == [2, 2])


@SCRIPT
def test_a_task_is_run_through_its_form(script: bool, tab: Browser, shop: Shop) -> None:
    tab.open("/tasks/shop.greet", script=script)
    tab.fill("[name='param.name']", "42")
    tab.fill("[name='param.times']", "2")
    tab.click(".more summary")
    tab.fill("[name='option.priority']", "soon")
    tab.click("button.main")
    assert "soon" in refused(tab)
    tab.fill("[name='option.priority']", "-1")
    tab.click("button.main")
    tab.says("The job was submitted.", ".notice")
    job = shop.finished(tab.path.removeprefix("/jobs/").partition("?")[0])
    assert (job.result, job.priority) == ("Hello, 42! Hello, 42! ", -1)


@SCRIPT
def test_a_queue_is_paused_and_resumed(script: bool, tab: Browser, shop: Shop) -> None:
    tab.open("/", script=script)
    tab.click("[aria-label='Pause the queue mail']")
    tab.says("The queue is paused.", ".notice")
    tab.one(".s-paused")
    tab.click("[aria-label='Resume the queue mail']")
    tab.says("The queue is resumed. Its jobs can start.", ".notice")
    assert tab.all(".s-paused") == []
    tab.click(".notice button", "Undo")
    tab.one(".s-paused")
    tab.click(".notice button", "Undo")
    tab.says("The queue is resumed.", ".notice")
    assert tab.all(".s-paused") == []


@SCRIPT
def test_a_schedule_lives_its_life(script: bool, tab: Browser, shop: Shop) -> None:
    tab.open("/schedules", script=script)
    tab.click(".acts a", "Cron")
    tab.fill("#rule", "0 25 * * *")
    tab.fill("[name=args]", '["scheduled"]')
    tab.click("button.main", "Create")
    assert "25" in refused(tab)
    tab.fill("#rule", "30 9 * * mon")
    tab.fill("#tz", "Europe/Riga")
    tab.click("#task option", "shop.greet")
    if script:
        tab.says("At 09:30 on Monday, Europe/Riga")  # the preview moves the button, so a click before may miss it
    tab.click("button.main", "Create")
    tab.says("The schedule was stored.", ".notice")
    tab.says("At 09:30 on Monday, Europe/Riga")
    tab.fill("#rule", "45 9 * * mon")
    tab.click("button.main", "Save")
    tab.says("The schedule was changed.", ".notice")
    tab.says("At 09:45 on Monday")
    tab.click(".acts button", "Disable")
    tab.says("The schedule is disabled.")
    tab.click(".acts button", "Enable")
    tab.says("Next fires")
    place = tab.path.partition("?")[0]
    tab.click(".acts button", "Run now")
    tab.says("The job was submitted.", ".notice")
    job = tab.path.removeprefix("/jobs/").partition("?")[0]
    assert shop.finished(job).result == "Hello, scheduled! "
    tab.open(place, script=script)
    tab.click(".acts summary", "Delete")
    tab.click(".pop button")
    tab.says("The schedule was deleted.", ".notice")
    assert tab.path.partition("?")[0] == "/schedules"


@SCRIPT
def test_what_a_rule_means_is_said_before_it_is_stored(script: bool, tab: Browser) -> None:
    tab.open("/schedules/new?kind=cron", script=script)
    tab.fill("#rule", "0 9 * * mon-fri")
    if not script:
        tab.click("#look")
        assert "token" not in tab.path
    tab.says("At 09:00 on Monday through Friday", "#preview")
    assert len(tab.all("#preview .fires li")) >= 3
    tab.fill("#rule", "0 9 31 feb *")
    if not script:
        tab.click("#look")
    tab.one("#preview .problem")


@SCRIPT
def test_jobs_are_found_by_the_line_and_by_the_controls(script: bool, tab: Browser, shop: Shop) -> None:
    waiting(shop, "somebody to find")
    tab.open("/jobs", script=script)
    tab.fill("#search", "state:scheduled args.name:nowhere")
    tab.one("#search").submit()
    tab.says("No job matches the search.")
    tab.fill("#search", 'args.name:"somebody to find"')
    tab.one("#search").submit()
    tab.says("somebody to find", "td.wide")
    tab.click(".chips a", "failed")
    tab.says("No job matches the search.")
    tab.click(".chips a", "all")
    tab.click("[name=queue] option", "default")
    tab.click(".controls button", "Filter")
    tab.says("somebody to find", "td.wide")
    assert tab.one("#search").get_attribute("value") == 'args.name:"somebody to find" queue:default'


def test_pages_lead_on_and_back(tab: Browser, shop: Shop) -> None:
    shop.app.sync.submit_many(shop.tasks.greet.options(delay=3600, queue="many"), [(f"n{n}", 1) for n in range(60)])
    tab.open("/jobs?search=queue:many")
    tab.says("60 match", ".lead")
    assert len(tab.all("tbody tr")) == 50
    tab.click(".pager a", "Older")
    tab.until(lambda: len(tab.all("tbody tr")) == 10, "the other ten")
    tab.says("60 match", ".lead")
    tab.click(".pager a", "Latest")
    tab.until(lambda: len(tab.all("tbody tr")) == 50, "the first page")


def test_a_selection_goes_along_to_the_other_pages(tab: Browser, shop: Shop) -> None:
    rows = [(f"n{n}", 1) for n in range(60)]
    jobs = shop.app.sync.submit_many(shop.tasks.greet.options(delay=3600, queue="along"), rows)
    tab.open("/jobs?search=queue:along")
    for job in jobs[-2:]:
        tab.click(f"[value='{job}']")
    tab.click(".pager a", "Older")
    tab.says("2 (2 not in view) selected:", ".bulk-word")
    tab.click(f"[value='{jobs[0]}']")
    tab.click("#bulk summary", "Cancel")
    tab.says("Cancel the 3 (2 not in view) selected shop.greet?", "#bulk .pop")
    tab.click("#bulk .pop button", "Cancel")
    tab.says("Cancelled 3 jobs.", ".notice")
    assert {job.id for job in shop.jobs(TaskStatus.CANCELLED)} >= {jobs[0], *jobs[-2:]}
    tab.says("Select jobs to change them.", "#unpicked")


# From where -------------------------------------------------------------------------------------


@SCRIPT
def test_forms_work_on_a_plain_network(script: bool, browser: Browser, shop: Shop) -> None:
    """Not by HTTPS nor on the loopback, browsers send no Sec-Fetch-Site: the form's origin has to be told."""
    browser.base = shop.serve("--insecure").replace("127.0.0.1", "shop.test")
    browser.open(f"/jobs/{waiting(shop, 'afar')}", script=script)
    browser.click(".acts button", "Cancel")
    browser.says("Cancelled 1 job.", ".notice")
    assert all("http://shop.test" in request.url for request in browser.asked())


def test_a_link_from_elsewhere_leaves_the_other_tabs_their_token(tab: Browser) -> None:
    tab.open("/tasks")
    token = tab.js("return document.body.dataset.token")
    home, tab.base = tab.base, tab.base.replace("127.0.0.1", "localhost")
    tab.open("/workers")
    tab.js("location.href = arguments[0]", f"{home}/jobs")
    tab.until(lambda: tab.driver.current_url == f"{home}/jobs", "the page that the link leads to")
    tab.one("h1", "Jobs")
    assert tab.js("return document.body.dataset.token") == token
    tab.asked()
