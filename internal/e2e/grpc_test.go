package e2e_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	tlscredentials "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	grpchealth "google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/keyporter/keyporter/internal/parts/partstest"
)

// text is the request and response message of all methods of the service below.
type text = wrapperspb.StringValue

// catalog is a gRPC service with a method of each kind.
type catalog struct {
	address string
	arrived chan string   // a message that a client stream has sent, or the start of a waiting call
	proceed chan struct{} // continues a server stream
	ended   chan error    // the end of a waiting call

	mu   sync.Mutex
	seen metadata.MD // guarded by mu; metadata of the last unary call
}

// catalogService describes catalog in the form of generated code.
var catalogService = grpc.ServiceDesc{
	ServiceName: "shop.v1.Catalog",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Get", Handler: func(c any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		question := &text{}
		if err := decode(question); err != nil {
			return nil, err
		}
		return c.(*catalog).get(ctx, question.GetValue())
	}}},
	Streams: []grpc.StreamDesc{
		{StreamName: "Watch", ServerStreams: true, Handler: func(c any, s grpc.ServerStream) error { return c.(*catalog).watch(s) }},
		{StreamName: "Upload", ClientStreams: true, Handler: func(c any, s grpc.ServerStream) error { return c.(*catalog).upload(s) }},
		{StreamName: "Talk", ServerStreams: true, ClientStreams: true, Handler: func(c any, s grpc.ServerStream) error { return c.(*catalog).talk(s) }},
	},
}

func startCatalog(t *testing.T, options ...grpc.ServerOption) (*catalog, *grpc.Server) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &catalog{address: listener.Addr().String(), arrived: make(chan string), proceed: make(chan struct{}), ended: make(chan error, 1)}
	server := grpc.NewServer(options...)
	server.RegisterService(&catalogService, c)
	healthpb.RegisterHealthServer(server, grpchealth.NewServer())
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	return c, server
}

// startImpostor starts a server in place of c, with another certificate.
func (c *catalog) startImpostor(t *testing.T) {
	t.Helper()
	certificate, _ := selfSigned(t)
	listener, err := net.Listen("tcp", c.address)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(tlscredentials.NewServerTLSFromCert(&certificate)))
	server.RegisterService(&catalogService, c)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
}

// get answers with the question, with the status that the question asks for, or never.
func (c *catalog) get(ctx context.Context, question string) (*text, error) {
	came, _ := metadata.FromIncomingContext(ctx)
	c.mu.Lock()
	c.seen = came
	c.mu.Unlock()
	_ = grpc.SetHeader(ctx, metadata.Pairs("x-header", "1", "x-header", "2", "x-header-bin", "\x00\xff"))
	_ = grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "3", "x-trailer-bin", "\x00\xff"))
	how, number, _ := strings.Cut(question, " ")
	switch how {
	case "code":
		return nil, codeOf(number)
	case "deadline":
		deadline, ok := ctx.Deadline()
		return wrapperspb.String(fmt.Sprint(ok, time.Until(deadline))), nil
	case "wait":
		c.arrived <- "wait"
		<-ctx.Done()
		c.ended <- ctx.Err()
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	return wrapperspb.String(question), nil
}

// codeOf returns a status with the given code, and with details, which travel in a trailer.
func codeOf(number string) error {
	n, _ := strconv.Atoi(number)
	s, err := status.New(codes.Code(n), "as it was asked for: ş").WithDetails(&errdetails.ErrorInfo{Reason: "TEST"})
	if err != nil {
		return err
	}
	return s.Err()
}

// watch sends "one", and "two" once it may proceed. On request, it ends in between with a status.
func (c *catalog) watch(s grpc.ServerStream) error {
	question := &text{}
	if err := s.RecvMsg(question); err != nil {
		return err
	}
	if err := s.SendMsg(wrapperspb.String("one")); err != nil {
		return err
	}
	if _, number, ok := strings.Cut(question.GetValue(), " "); ok {
		return codeOf(number)
	}
	<-c.proceed
	return s.SendMsg(wrapperspb.String("two"))
}

// upload reports each message on arrival, and answers with all of them.
func (c *catalog) upload(s grpc.ServerStream) error {
	var all []string
	for {
		m := &text{}
		if err := s.RecvMsg(m); errors.Is(err, io.EOF) {
			return s.SendMsg(wrapperspb.String(strings.Join(all, " ")))
		} else if err != nil {
			return err
		}
		all = append(all, m.GetValue())
		c.arrived <- m.GetValue()
	}
}

// talk echoes each message.
func (c *catalog) talk(s grpc.ServerStream) error {
	for {
		m := &text{}
		if err := s.RecvMsg(m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := s.SendMsg(m); err != nil {
			return err
		}
	}
}

// caller is a gRPC client with a key, and the expected cost of its calls.
type caller struct {
	*grpc.ClientConn
	t              *testing.T
	catalog        *catalog
	user, key      string
	used, refunded int64
}

// context returns the context of calls with a key.
func (c *caller) context(key string) context.Context {
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	c.t.Cleanup(cancel)
	return metadata.AppendToOutgoingContext(ctx, "x-api-key", key)
}

// open opens a stream.
func (c *caller) open(ctx context.Context, method string) grpc.ClientStream {
	c.t.Helper()
	stream, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		c.t.Fatal(err)
	}
	return stream
}

func sendMessage(t *testing.T, s grpc.ClientStream, message string) {
	t.Helper()
	if err := s.SendMsg(wrapperspb.String(message)); err != nil {
		t.Fatal(err)
	}
}

func expectMessage(t *testing.T, s grpc.ClientStream, want string) {
	t.Helper()
	m := &text{}
	if err := s.RecvMsg(m); err != nil || m.GetValue() != want {
		t.Fatalf("received %.20q, %v; want %.20q", m.GetValue(), err, want)
	}
}

// expectEnd expects a stream to end with a status, and returns its text.
func expectEnd(t *testing.T, s grpc.ClientStream, want codes.Code) string {
	t.Helper()
	err := s.RecvMsg(&text{})
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if status.Code(err) != want {
		t.Fatalf("the stream ended with %v, want %v", err, want)
	}
	return status.Convert(err).Message()
}

// ask is the example of docs/clients.md.
func ask(ctx context.Context, conn *grpc.ClientConn, key, question string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // the upstream receives this deadline
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "x-api-key", key) // or "authorization", "Bearer "+key
	answer := &wrapperspb.StringValue{}
	err := conn.Invoke(ctx, "/shop.v1.Catalog/Get", wrapperspb.String(question), answer)
	return answer.GetValue(), err
}

// grpcExample returns the code block of a language in the gRPC section of docs/clients.md.
func grpcExample(t *testing.T, language string) string {
	t.Helper()
	document, err := os.ReadFile("../../docs/clients.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(document), "\n## gRPC\n")
	_, rest, _ := strings.Cut(section, "\n```"+language+"\n")
	block, _, ok := strings.Cut(rest, "```\n")
	if !ok {
		t.Fatalf("no example in %s", language)
	}
	return block
}

// A gRPC client reaches a gRPC server, in plaintext and with TLS on both sides: calls of all kinds
// with interleaved messages, metadata, trailers, deadlines, statuses, denials, and the credits for
// all of them. The test runs the route table, the commands and the call of docs/clients.md.
func TestGRPC(t *testing.T) {
	t.Parallel()
	partstest.Slow(t)
	source, err := os.ReadFile("grpc_test.go")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(source), "\n"+grpcExample(t, "go")) {
		t.Error("the example of the documents is not what is run here")
	}
	config := filepath.Join(t.TempDir(), "keyporter.yaml")
	write(t, config, grpcExample(t, "yaml")+"  - {paths: /shop.v1.Old/*, kind: api_key, methods: [GET]}\n")
	s := start(t, stackConfig{noEnvoy: true, flags: append([]string{"--config", config}, patient...)})
	for line := range strings.Lines(grpcExample(t, "console")) {
		command, _ := strings.CutPrefix(strings.TrimSpace(line), "$ keyporter envoy ")
		scheme := "h2c"
		if strings.Contains(command, "https://") {
			scheme = "https"
		}
		t.Run(scheme, func(t *testing.T) { s.callEverything(t, scheme, command, config) })
	}
}

// callEverything makes calls of all kinds through the Envoy of a command, with the upstream and the
// files named as in the documents.
func (s *stack) callEverything(t *testing.T, scheme, command, config string) {
	var options []grpc.ServerOption
	var changes []string
	client := insecure.NewCredentials()
	authority := ""
	if scheme == "https" {
		var certificate tls.Certificate
		certificate, authority = selfSigned(t)
		options = append(options, grpc.Creds(tlscredentials.NewServerTLSFromCert(&certificate)))
		pool := x509.NewCertPool()
		pool.AddCert(certificate.Leaf)
		client = tlscredentials.NewClientTLSFromCert(pool, "")
		changes = listenWithTLS(authority)
	}
	server, stop := startCatalog(t, options...)
	command, _, _ = strings.Cut(command, " >")
	here := strings.NewReplacer("keyporter.yaml", config, "catalog:50051", server.address, "/etc/envoy/ca.pem", authority)
	s.startEnvoyWith(t, strings.Fields(here.Replace(command)), changes...)
	conn, err := grpc.NewClient(s.front, grpc.WithTransportCredentials(client))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	user := "user-" + scheme
	c := &caller{ClientConn: conn, t: t, catalog: server, user: user, key: s.user(user, "metered", "--credits", "1000")}
	for _, step := range []func(*stack, *caller){
		unaryCalls, streamsOfEachKind, largeMessages, deadlines, statusesAndCredits, refusals,
	} {
		step(s, c)
	}
	stop.Stop()
	c.expectAway("the upstream has gone")
	if scheme == "https" {
		server.startImpostor(t)
		c.expectAway("the upstream is another one")
	}
	s.balanceBecomes(user, c.used, c.refunded)
}

// expectAway makes a call that does not reach the upstream, and whose credit is refunded.
func (c *caller) expectAway(why string) {
	c.t.Helper()
	_, err := ask(c.t.Context(), c.ClientConn, c.key, "x")
	if status.Code(err) != codes.Unavailable || status.Convert(err).Message() != unavailableBody {
		c.t.Errorf("%s: %v", why, err)
	}
	c.refunded++
}

// selfSigned returns a self-signed certificate for 127.0.0.1, and a file with it and its key.
func selfSigned(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "test"}, SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "certificate.pem")
	write(t, file, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))+
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, file
}

// listenWithTLS changes the listener as described in docs/clients.md.
func listenWithTLS(file string) []string {
	const chain = "- transport_socket_connect_timeout: 10s"
	return []string{chain, fmt.Sprintf(`- transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            alpn_protocols: [h2, http/1.1]
            tls_certificates: [{ certificate_chain: { filename: %[1]q }, private_key: { filename: %[1]q } }]
      %[2]s`, file, strings.TrimPrefix(chain, "- "))}
}

// Metadata and trailers pass in both directions, including binary and repeated ones. The upstream
// receives the identity headers instead of the credential.
func unaryCalls(s *stack, c *caller) {
	for name, value := range map[string]string{"x-api-key": c.key, "authorization": "Bearer " + c.key} {
		ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
		defer cancel()
		ctx = metadata.AppendToOutgoingContext(ctx, name, value, "x-mine", "1", "x-mine", "2", "x-mine-bin", "\x00\xff")
		var header, trailer metadata.MD
		answer := &text{}
		if err := c.Invoke(ctx, "/shop.v1.Catalog/Get", wrapperspb.String("hello"), answer, grpc.Header(&header), grpc.Trailer(&trailer)); err != nil || answer.GetValue() != "hello" {
			c.t.Fatalf("%s: %q, %v", name, answer.GetValue(), err)
		}
		c.used++
		c.catalog.mu.Lock()
		seen := c.catalog.seen
		c.catalog.mu.Unlock()
		for _, want := range []struct {
			md     metadata.MD
			name   string
			values []string
		}{
			{seen, "x-mine", []string{"1", "2"}}, {seen, "x-mine-bin", []string{"\x00\xff"}},
			{seen, "x-keyporter-user", []string{c.user}}, {seen, "x-api-key", nil}, {seen, "authorization", nil},
			{header, "x-header", []string{"1", "2"}}, {header, "x-header-bin", []string{"\x00\xff"}}, {header, "x-credits-remaining", []string{fmt.Sprint(1000 - c.used)}},
			{trailer, "x-trailer", []string{"3"}}, {trailer, "x-trailer-bin", []string{"\x00\xff"}},
		} {
			if got := want.md.Get(want.name); !slices.Equal(got, want.values) {
				c.t.Errorf("%s: %s is %q, want %q", name, want.name, got, want.values)
			}
		}
	}
}

// Messages are not held back: the answer to one arrives before the next is sent.
func streamsOfEachKind(_ *stack, c *caller) {
	watch := c.open(c.context(c.key), "/shop.v1.Catalog/Watch")
	sendMessage(c.t, watch, "")
	watch.CloseSend()
	expectMessage(c.t, watch, "one")
	c.catalog.proceed <- struct{}{}
	expectMessage(c.t, watch, "two")
	expectEnd(c.t, watch, codes.OK)

	upload := c.open(c.context(c.key), "/shop.v1.Catalog/Upload")
	for _, message := range []string{"one", "two"} {
		sendMessage(c.t, upload, message)
		if got := <-c.catalog.arrived; got != message {
			c.t.Errorf("%q arrived, want %q", got, message)
		}
	}
	upload.CloseSend()
	expectMessage(c.t, upload, "one two")
	expectEnd(c.t, upload, codes.OK)

	talk := c.open(c.context(c.key), "/shop.v1.Catalog/Talk")
	for i := range 10 {
		sendMessage(c.t, talk, fmt.Sprint(i))
		expectMessage(c.t, talk, fmt.Sprint(i))
	}
	talk.CloseSend()
	expectEnd(c.t, talk, codes.OK)
	c.used += 3
}

// Messages that are larger than all buffers on the way arrive.
func largeMessages(_ *stack, c *caller) {
	large := strings.Repeat("large ", 500_000)
	talk := c.open(c.context(c.key), "/shop.v1.Catalog/Talk")
	for range 2 {
		sendMessage(c.t, talk, large)
		expectMessage(c.t, talk, large)
	}
	talk.CloseSend()
	expectEnd(c.t, talk, codes.OK)
	c.used++
}

// The upstream receives the client's deadline, and notices when the client disconnects.
func deadlines(_ *stack, c *caller) {
	answer, err := ask(c.t.Context(), c.ClientConn, c.key, "deadline")
	if err != nil {
		c.t.Fatal(err)
	}
	told, left, _ := strings.Cut(answer, " ")
	if d, err := time.ParseDuration(left); told != "true" || err != nil || d <= 0 || d > time.Minute {
		c.t.Errorf("the upstream knows of the deadline: %s, and has %s", told, left)
	}
	ctx, leave := context.WithCancel(c.t.Context())
	go func() {
		<-c.catalog.arrived
		leave()
	}()
	if _, err := ask(ctx, c.ClientConn, c.key, "wait"); status.Code(err) != codes.Canceled {
		c.t.Errorf("a call that was given up: %v", err)
	}
	if err := <-c.catalog.ended; !errors.Is(err, context.Canceled) {
		c.t.Errorf("at the upstream it ended with %v", err)
	}
	c.used += 2
}

// A status arrives as the upstream sent it, with its text and details, before and after messages.
// The credit is refunded if the status reports a failure of the upstream.
func statusesAndCredits(_ *stack, c *caller) {
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		_, err := ask(c.t.Context(), c.ClientConn, c.key, fmt.Sprint("code ", int(code)))
		if got := status.Convert(err); got.Code() != code || got.Message() != "as it was asked for: ş" || len(got.Details()) != 1 {
			c.t.Errorf("%v arrived as %v with %v", code, err, got.Details())
		}
		watch := c.open(c.context(c.key), "/shop.v1.Catalog/Watch")
		sendMessage(c.t, watch, fmt.Sprint("code ", int(code)))
		watch.CloseSend()
		expectMessage(c.t, watch, "one")
		if got := expectEnd(c.t, watch, code); got != "as it was asked for: ş" {
			c.t.Errorf("%v after a message says %q", code, got)
		}
		switch code {
		case codes.Unknown, codes.Internal, codes.Unavailable, codes.DataLoss:
			c.refunded += 2
		// a client chooses its deadline, and must not get a refund for what has already arrived
		case codes.DeadlineExceeded:
			c.refunded++
			c.used++
		default:
			c.used += 2
		}
	}
}

// A denial is a status, for streams and unary calls. It is free, and its headers are in the
// trailers. Public routes need no key.
func refusals(s *stack, c *caller) {
	free := s.user("free-"+c.user, "free", "--api-access=false")
	slow := s.user("slow-"+c.user, "slow", "--rate-limit", "1", "--rate-window", "1h")
	if _, err := ask(c.t.Context(), c.ClientConn, slow, "x"); err != nil {
		c.t.Fatal(err)
	}
	for _, row := range []struct {
		name, method, key string
		code              codes.Code
		text              string
		header            string
	}{
		{"an odd path", "/shop.v1.Catalog/Get;x", c.key, codes.InvalidArgument, "bad_request", ""},
		{"no rule", "/shop.v1.Other/Get", c.key, codes.NotFound, "not_found", ""},
		{"another method", "/shop.v1.Old/Get", c.key, codes.Unimplemented, "method_not_allowed", ""},
		{"no key", "/shop.v1.Catalog/Get", "", codes.Unauthenticated, "unauthorized", "www-authenticate"},
		{"a wrong key", "/shop.v1.Catalog/Get", "wrong", codes.Unauthenticated, "unauthorized", "www-authenticate"},
		{"a plan without API access", "/shop.v1.Catalog/Get", free, codes.PermissionDenied, "api_access_required", ""},
		{"too many", "/shop.v1.Catalog/Get", slow, codes.ResourceExhausted, "rate_limited", "retry-after"},
	} {
		ctx := c.context(row.key)
		var trailer metadata.MD
		err := c.Invoke(ctx, row.method, wrapperspb.String("x"), &text{}, grpc.Trailer(&trailer))
		stream := c.open(ctx, row.method)
		for kind, got := range map[string]*status.Status{"a call": status.Convert(err), "a stream": status.Convert(stream.RecvMsg(&text{}))} {
			if got.Code() != row.code || !strings.HasPrefix(got.Message(), `{"success":false,`) || !strings.Contains(got.Message(), `"code":"`+row.text+`"`) {
				c.t.Errorf("%s, %s: %v, want %v with %s", row.name, kind, got, row.code, row.text)
			}
		}
		if row.header != "" && (len(trailer.Get(row.header)) != 1 || len(stream.Trailer().Get(row.header)) != 1) {
			c.t.Errorf("%s: no %s in %v, %v", row.name, row.header, trailer, stream.Trailer())
		}
	}
	answer, err := healthpb.NewHealthClient(c).Check(c.t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil || answer.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		c.t.Errorf("what is public: %v, %v", answer, err)
	}
}
