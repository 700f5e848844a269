package natslease

import (
	"time"

	"github.com/nats-io/nats.go"
)

// ConnectOptions are the recommended options of a connection that carries
// leases: nothing is buffered while disconnected (a buffered renewal would be
// sent after the reconnect, when it is void), a dead server is noticed within
// about 3 s, and reconnecting never ends. The caller adds what is its own:
// name, credentials, TLS, handlers, and RetryOnFailedConnect where the
// process may start before the server.
func ConnectOptions() []nats.Option {
	return []nats.Option{
		nats.ReconnectBufSize(-1),
		nats.PingInterval(time.Second),
		nats.MaxPingsOutstanding(2),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(100 * time.Millisecond),
		nats.ReconnectJitter(50*time.Millisecond, 50*time.Millisecond),
		nats.Timeout(2 * time.Second),
	}
}
