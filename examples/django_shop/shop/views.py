from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from shop.models import Order
from shop.tasks import send_receipt

STOCK = {"teapot", "samovar"}


@csrf_exempt
@require_POST
def order(request: HttpRequest) -> JsonResponse:
    """Take an order. Its row and the job are there both, or neither of them is."""
    try:
        with transaction.atomic():
            row = Order.objects.create(item=request.POST["item"])
            result = send_receipt.enqueue(row.pk)
            if row.item not in STOCK:
                raise LookupError(f"no {row.item} in stock")
    except LookupError as error:
        return JsonResponse({"error": str(error)}, status=409)
    return JsonResponse({"order": row.pk, "job": result.id})
