from django_tasks import task  # with Django 6.0: from django.tasks import task

from shop.models import Order


@task(priority=10)
def send_receipt(order_id: int) -> str:
    """Write the receipt of an order."""
    order = Order.objects.get(pk=order_id)
    order.receipt = f"receipt {order.pk}: {order.item}"
    order.save()
    return order.receipt
