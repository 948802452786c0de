from flowrra import main

raise SystemExit(main())
