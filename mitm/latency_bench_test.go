package mitm

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// mostDelayed is what may pass from when the upstream lets something go until the
// client has it.
const mostDelayed = 5 * time.Millisecond

// How long what an upstream sends when it likes is on its way: an event of a stream
// (text/event-stream), the answer in a bidirectional call of gRPC. Both ends read the
// same clock.
func BenchmarkFirstByte(b *testing.B) {
	start := time.Now()
	for _, protocol := range []string{"h1", "h2"} {
		b.Run("SSE/"+protocol, func(b *testing.B) {
			next := make(chan struct{})
			proxy := newBench(b, benchConfig{upstream: upstream(b, true, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				control := http.NewResponseController(w)
				control.Flush()
				for range next {
					w.Write(binary.BigEndian.AppendUint64(nil, uint64(time.Since(start))))
					control.Flush()
				}
			})})
			defer close(next)
			res, err := proxy.client(protocol).Get("https://www.example.com/")
			if err != nil {
				b.Fatal(err)
			}
			defer res.Body.Close()
			reader, event := bufio.NewReader(res.Body), make([]byte, 8)
			reportDelays(b, func() time.Duration {
				next <- struct{}{}
				if _, err := io.ReadFull(reader, event); err != nil {
					b.Fatal(err)
				}
				return time.Since(start) - time.Duration(binary.BigEndian.Uint64(event))
			})
		})
	}
	b.Run("gRPC", func(b *testing.B) {
		proxy := newBench(b, benchConfig{pins: []string{"*=" + grpcUpstream(b)}})
		conn, err := grpc.NewClient("passthrough:///www.example.com:50051", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodec(text{})),
			grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
				return proxy.listener.dial(ctx, proxy.destination(address))
			}))
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		stream, err := conn.NewStream(b.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/s/clock")
		if err != nil {
			b.Fatal(err)
		}
		reportDelays(b, func() time.Duration {
			message := ""
			if err := stream.SendMsg(&message); err != nil {
				b.Fatal(err)
			}
			if err := stream.RecvMsg(&message); err != nil {
				b.Fatal(err)
			}
			sent, err := time.Parse(time.RFC3339Nano, message)
			if err != nil {
				b.Fatal(err)
			}
			return time.Since(sent)
		})
	})
}

// reportDelays reports the middle of many delays, and one that few are beyond.
func reportDelays(b *testing.B, delay func() time.Duration) {
	b.Helper()
	var delays []time.Duration
	for b.Loop() {
		delays = append(delays, delay())
	}
	slices.Sort(delays)
	middle, late := delays[len(delays)/2], delays[len(delays)*99/100]
	b.ReportMetric(float64(middle.Microseconds()), "µs/p50")
	b.ReportMetric(float64(late.Microseconds()), "µs/p99")
	if middle > mostDelayed {
		b.Errorf("half of them take more than %v", mostDelayed)
	}
}
