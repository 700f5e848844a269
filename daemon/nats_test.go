package daemon

import "testing"

func TestRedacted(t *testing.T) {
	for _, tt := range []struct{ addrs, want string }{
		{"nats://h:1", "nats://h:1"},
		{"nats://bob:geheim@h:1", "nats://hidden@h:1"},
		{"nats://geheim@h", "nats://hidden@h"},
		{"bob:geheim@h:1", "nats://hidden@h:1"},
		{"nats://a:geheim@h:1, tls://b:geheim@h:2", "nats://hidden@h:1,tls://hidden@h:2"},
		{"nats://h:1,nats://bob:geheim", "(a URL that can't be parsed)"},
	} {
		if got := redacted(tt.addrs); got != tt.want {
			t.Errorf("redacted(%q) = %q, want %q", tt.addrs, got, tt.want)
		}
	}
}
