package mitm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"agentops/audit"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// text is a gRPC codec of strings.
type text struct{}

func (text) Marshal(v any) ([]byte, error) { return []byte(*v.(*string)), nil }

func (text) Unmarshal(data []byte, v any) error {
	*v.(*string) = string(data)
	return nil
}

func (text) Name() string { return "text" }

// grpcUpstream serves any method: it echoes each message at once, and what the
// method says beside.
func grpcUpstream(t testing.TB, options ...grpc.ServerOption) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(append(options, grpc.ForceServerCodec(text{}), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		if method == "/s/fail" { // no message: trailers only
			return status.Error(codes.NotFound, "no such thing")
		}
		stream.SetTrailer(metadata.Pairs("sum", "42"))
		if err := stream.SendHeader(metadata.Pairs("early", "yes")); err != nil {
			return err
		}
		var all []string
		for {
			var message string
			if err := stream.RecvMsg(&message); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return err
			}
			all = append(all, message)
			if method == "/s/clock" {
				message = time.Now().Format(time.RFC3339Nano)
			}
			if method == "/s/bidi" || method == "/s/clock" {
				if err := stream.SendMsg(&message); err != nil {
					return err
				}
			}
		}
		replies := []string{strings.Join(all, " ")}
		switch method {
		case "/s/server":
			replies = slices.Concat(all, all)
		case "/s/bidi":
			return status.Error(codes.Aborted, "enough")
		}
		for i := range replies {
			if err := stream.SendMsg(&replies[i]); err != nil {
				return err
			}
		}
		return nil
	}))...)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := server.Serve(listener); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { server.Stop(); wg.Wait() })
	return listener.Addr().String()
}

func TestGRPC(t *testing.T) {
	certified := upstream(t, true, echo)
	for name, c := range map[string]struct {
		address string
		server  []grpc.ServerOption
		client  func(*bench) credentials.TransportCredentials
	}{
		"TLS": {"www.example.com:443", []grpc.ServerOption{grpc.Creds(credentials.NewServerTLSFromCert(&certified.TLS.Certificates[0]))},
			func(b *bench) credentials.TransportCredentials { return credentials.NewClientTLSFromCert(b.roots, "") }},
		"prior knowledge": {"www.example.com:50051", nil,
			func(*bench) credentials.TransportCredentials { return insecure.NewCredentials() }},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, benchConfig{pins: []string{"*=" + grpcUpstream(t, c.server...)}})
			b.trusted.AddCert(certified.Certificate())
			conn, err := grpc.NewClient("passthrough:///"+c.address, grpc.WithTransportCredentials(c.client(b)),
				grpc.WithDefaultCallOptions(grpc.ForceCodec(text{})),
				grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
					return b.listener.dial(ctx, b.destination(address))
				}))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()

			hello, reply := "hello", ""
			var header, trailer metadata.MD
			if err := conn.Invoke(t.Context(), "/s/unary", &hello, &reply, grpc.Header(&header), grpc.Trailer(&trailer)); err != nil || reply != "hello" {
				t.Errorf("unary: %q, %v", reply, err)
			}
			if fmt.Sprint(header.Get("early"), trailer.Get("sum")) != "[yes] [42]" {
				t.Errorf("header %v, trailer %v", header, trailer)
			}
			err = conn.Invoke(t.Context(), "/s/fail", &hello, &reply)
			if s, _ := status.FromError(err); s.Code() != codes.NotFound || s.Message() != "no such thing" {
				t.Errorf("the failing call: %v", err)
			}
			stream := func(method string, client, server bool) grpc.ClientStream {
				s, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: client, ServerStreams: server}, method)
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			send := func(s grpc.ClientStream, message string) {
				if err := s.SendMsg(&message); err != nil {
					t.Fatal(err)
				}
			}
			receive := func(s grpc.ClientStream) (string, error) {
				var message string
				err := s.RecvMsg(&message)
				return message, err
			}
			client := stream("/s/client", true, false)
			for range 3 {
				send(client, "x")
			}
			client.CloseSend()
			if got, err := receive(client); err != nil || got != "x x x" {
				t.Errorf("client streaming: %q, %v", got, err)
			}
			server := stream("/s/server", false, true)
			send(server, "y")
			server.CloseSend()
			for range 2 {
				if got, err := receive(server); err != nil || got != "y" {
					t.Errorf("server streaming: %q, %v", got, err)
				}
			}
			if _, err := receive(server); !errors.Is(err, io.EOF) {
				t.Errorf("server streaming ends with %v", err)
			}
			// Each message is waited for before the next is sent, and the
			// head before any.
			bidi := stream("/s/bidi", true, true)
			if header, err := bidi.Header(); err != nil || len(header.Get("early")) != 1 {
				t.Errorf("the head is %v, %v", header, err)
			}
			for i := range 20 {
				want := strings.Repeat("z", i*5000)
				send(bidi, want)
				if got, err := receive(bidi); err != nil || got != want {
					t.Fatalf("bidirectional streaming: %d bytes, %v, want %d", len(got), err, len(want))
				}
			}
			bidi.CloseSend()
			if _, err := receive(bidi); status.Code(err) != codes.Aborted || len(bidi.Trailer().Get("sum")) != 1 {
				t.Errorf("bidirectional streaming ends with %v, %v", err, bidi.Trailer())
			}
			conn.Close()
			b.stop()
			if opens, requests := events[audit.FlowOpen](b.recorder), events[audit.HTTPRequest](b.recorder); len(opens) != 1 || len(requests) != 5 || requests[0].Protocol != "HTTP/2.0" {
				t.Errorf("recorded %+v, %+v", opens, requests)
			}
		})
	}
}

// Many streams at once, each larger than a window, on one connection.
func TestManyStreams(t *testing.T) {
	for _, protocol := range []string{"h2", "h2c"} {
		server, url := upstream(t, true, echo), "https://www.example.com/"
		if protocol == "h2c" {
			server, url = plain(t, echo), "http://www.example.com/"
		}
		b := newBench(t, benchConfig{upstream: server})
		client := b.client(protocol)
		b.get(client, url) // the others find the connection open
		large := strings.Repeat("0123456789abcdef", 20_000)
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				body := fmt.Sprint(i, large)
				res, err := client.Post(url, "text/plain", strings.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				defer res.Body.Close()
				if got, err := io.ReadAll(res.Body); err != nil || !strings.HasSuffix(string(got), " "+body) {
					t.Errorf("%s: stream %d: %d bytes, %v", protocol, i, len(got), err)
				}
			})
		}
		wg.Wait()
		client.CloseIdleConnections()
		b.stop()
		if opens, requests := events[audit.FlowOpen](b.recorder), events[audit.HTTPRequest](b.recorder); len(opens) != 1 || len(requests) != 51 {
			t.Errorf("%s: %d flows, %d requests", protocol, len(opens), len(requests))
		}
	}
}
