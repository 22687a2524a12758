
import time
def test_x(broker_url, database_url, provider):
    print("GO",provider.folder,flush=True); time.sleep(100)
