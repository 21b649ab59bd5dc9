package gateway

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

// cpu returns the processor time of this process: client, gateway and instance.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkPost measures a proxied POST of 1 KiB; "direct" is the same without
// the gateway, so the difference is what the gateway costs.
func BenchmarkPost(b *testing.B) {
	a := newInstance(b, "zone-a", say("ok"))
	cfg := testConfig(a)
	cfg.AccessLog = false
	g := start(b, cfg)
	body := `{"query":"` + strings.Repeat("x", 990) + `"}`
	for name, url := range map[string]string{"direct": "http://" + a.addr, "gateway": g.url} {
		b.Run(name, func(b *testing.B) {
			c := client(b)
			b.ReportAllocs()
			before := cpu()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					resp, err := c.Post(url+"/v1/datasets/1/retrieve", "application/json", strings.NewReader(body))
					if err != nil {
						b.Error(err)
						return
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
			})
			b.ReportMetric(float64(cpu()-before)/float64(b.N)/1e3, "cpu-µs/op")
		})
	}
}

// BenchmarkStreamEvent measures one 160-byte event of a stream, sent and
// received one by one.
func BenchmarkStreamEvent(b *testing.B) {
	event := frame("message", `, "answer": "`+strings.Repeat("w", 50)+`"`)
	ask := make(chan int)
	a := newInstance(b, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		send := emit(w, r)
		for {
			select {
			case n := <-ask:
				for range n {
					send(event)
				}
			case <-r.Context().Done():
				return
			}
		}
	})
	cfg := testConfig(a)
	cfg.AccessLog = false
	g := start(b, cfg)
	for name, url := range map[string]string{"direct": "http://" + a.addr, "gateway": g.url} {
		b.Run(name, func(b *testing.B) {
			resp, err := client(b).Post(url+"/v1/chat-messages", "application/json", strings.NewReader(chatBody))
			if err != nil {
				b.Fatal(err)
			}
			br := bufio.NewReader(resp.Body)
			buf := make([]byte, len(event))
			b.ReportAllocs()
			before := cpu()
			for b.Loop() {
				ask <- 1
				if _, err := io.ReadFull(br, buf); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(cpu()-before)/float64(b.N)/1e3, "cpu-µs/op")
			_ = resp.Body.Close()
		})
	}
}
